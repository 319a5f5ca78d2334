"""Ask the real code a question: how many bytes, how fast, the same maths?"""
