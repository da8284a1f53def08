"""What is found and what happens, told to other programs."""
