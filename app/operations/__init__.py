"""Operations: what a person does with a running installation: look, try, send now, clear up."""
