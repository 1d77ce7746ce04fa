"""Other people's models: everything about foreign file formats is here.

weights.py reads and writes a model's shape and tensors, tokenizer.py reads its vocabulary, and
chat.py lays out conversations as the model was tuned to read them. model.py and data/ import from
here, never the other way round.
"""
