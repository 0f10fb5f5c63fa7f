"""The pages of `--html`: cards with the answer, drawings, and the sections of the terminal. One page per verb."""
