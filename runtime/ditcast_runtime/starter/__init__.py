"""The embedded model: a small trained QwenImagePipeline, served when no other model is named."""
