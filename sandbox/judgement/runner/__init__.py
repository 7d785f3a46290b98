"""What runs inside a grading sandbox. Standard library only; read as text and written there, never imported here."""
