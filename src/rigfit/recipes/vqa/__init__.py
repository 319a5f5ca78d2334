"""Questions about pictures: Qwen2-VL, letterboxed pictures, LoRA, loss on the answer alone."""
