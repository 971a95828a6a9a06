"""Models written against hal's contracts."""
