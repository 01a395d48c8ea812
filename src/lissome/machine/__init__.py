"""What machine this is, what it can do, how noisy it was, and what work costs in time, memory and energy."""
