"""An OpenAI-compatible server that learns each person's taste; `palate.server.app.create_app` makes it."""
