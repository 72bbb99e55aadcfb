//! The node agent: one worker per pod observes, plans and applies.
