"""Seeded draws in plain Python: whole numbers of any length, and lists from which numbers are taken."""

WORD = 2**64


def mix(word):
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB % WORD
    return word ^ word >> 31


def plain_keys(seed, stream, number, count):
    """`keys` of one episode, in Python's whole numbers."""
    golden, state = 0x9E3779B97F4A7C15, 0
    for word in (seed % WORD, seed // WORD, stream, number):
        state = mix((state + golden) % WORD ^ word)
    return [mix((state + golden * place) % WORD) for place in range(1, count + 1)]


def plain_choice(draws, among):
    """`choose` of one row: each key takes one number out of a list of those left."""
    left = list(range(among))
    return [left.pop((key >> 32) * len(left) >> 32) for key in draws]
