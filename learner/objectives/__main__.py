"""`python -m learner.objectives` prints the table of docs/08-objectives.md."""

from learner.objectives.registry import markdown

if __name__ == "__main__":
    print(markdown())
