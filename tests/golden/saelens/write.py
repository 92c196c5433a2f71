"""Write the dictionaries that make.py then opens: python -m tests.golden.saelens.write."""

from tests.test_saelens_layout import CASES, GOLDEN, golden_sae

if __name__ == "__main__":
    for name in CASES:
        golden_sae(name).save(GOLDEN / name)
