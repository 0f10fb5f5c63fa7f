"""One job of a plan, and the executors that perform it. The only room that loads torch."""
