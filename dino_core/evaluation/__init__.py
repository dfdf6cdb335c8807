"""The published protocols: each module has one `evaluate(...)` that returns a result dataclass."""
