"""Dynamic depth: inputs that are sure early leave a model early, or take the path that their complexity asks for."""
