"""Updates parameters: optimizers, and the one step that every loss goes through."""
