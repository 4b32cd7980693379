"""How the model changes: fine-tuning on a person's, or a group's, satisfaction."""
