"""What `vertebra visualize` looks at inside a model, and how it is drawn."""
