"""Other people's models: all that is known here of foreign file formats.

weights.py reads and writes a model's shape and tensors, tokenizer.py its vocabulary and chat.py
lays out conversations as it was tuned to. model.py and data/ ask; nothing here asks them.
"""
