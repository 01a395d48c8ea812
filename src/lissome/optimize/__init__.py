"""The planner: tables -> solve -> verify. What can this model become on this machine, which of it meets the contract, and does it hold?"""
