"""`python -m eval.loco`: the twelve retrieval tasks of LoCoV1, whose texts are long."""
