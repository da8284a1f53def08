"""The HTTP edge: who may come in, and what each door says in the words of its callers."""
