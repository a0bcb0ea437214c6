"""Pure decisions over the model's values: what follows a finish, how long to wait, who may run what."""
