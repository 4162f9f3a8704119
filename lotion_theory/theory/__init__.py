"""The theory as a program: claims, proofs, and their verification over formats."""
