"""`python -m eval.retrieval`: rank documents for queries, and score the rankings."""
