"""From a request to a plan that names every byte of the output. Pure, no torch."""
