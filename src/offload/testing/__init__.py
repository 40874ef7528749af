"""What tests need: a clock to move, the contract that every broker keeps, lockstep, and pytest fixtures."""
