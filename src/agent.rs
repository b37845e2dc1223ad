//! Builds the stages, starts them from the end of the flow, stops them from its beginning.
