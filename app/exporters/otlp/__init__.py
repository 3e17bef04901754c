"""OTLP/HTTP traces by the GenAI conventions, for Phoenix, MLflow and whoever else takes them."""
