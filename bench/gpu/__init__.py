"""Answers every open question about decoding and training on a GPU: python -m bench gpu"""
