"""Tells who listens what happens, by streams and to pollers. Changes nothing but what is known of quiet studies."""
