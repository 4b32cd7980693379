"""The pages: onboarding, chat, one's own taste, and the operator's dashboard; HTML with htmx, without a build step."""
