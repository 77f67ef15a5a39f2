"""A step of a pipeline: a recipe file in, a model that met its gates out; what has not changed is not done again.

recipe.toml -> StepRecipe -> stages, each with a key -> cache or work -> gates -> OUT/ and an exit code
"""
