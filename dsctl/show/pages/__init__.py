"""What `--html` writes: the answer on cards, drawings, and the terminal's sections below them. A page per verb."""
