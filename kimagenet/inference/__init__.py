"""Uses of trained models: loading, fine-tuning, evaluation, export."""
