"""`python -m learner.objectives` prints the table of docs/65-objectives.md."""

from learner.objectives.registry import markdown

if __name__ == "__main__":
    print(markdown())
