"""Parts of a retrieval evaluation: BEIR folders, exact search, trec_eval's metrics.

The command `eval.retrieval` is not built yet.
"""
