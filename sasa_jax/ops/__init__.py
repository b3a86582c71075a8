"""Operators: functions of arrays, without parameters."""
