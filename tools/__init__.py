"""The truth table as data, and the commands that write the pages made from it."""
