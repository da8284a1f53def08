"""What is going on in a stream: who is who, what lies in which zone, what nobody may see."""
