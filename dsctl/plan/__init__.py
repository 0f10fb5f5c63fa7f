"""From what is asked for to a plan that names every byte of the output. Pure, no torch."""
