"""The part of OpenAI's and vLLM's HTTP API that trainers and evaluators use, over the same Teacher as the others."""
