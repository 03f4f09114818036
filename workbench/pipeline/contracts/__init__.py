"""What a notebook promises: parameters, inputs, outputs, resources."""
