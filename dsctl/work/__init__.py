"""One job of a plan, and who does it. The only room that loads torch."""
