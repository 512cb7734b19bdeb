"""Attacks on secrets and on the way out, against the running product."""
