"""What a trained student has learned: the paper's analyses as small functions on arrays.

- `attention`: the attention of every block, recomputed from the checkpoint.
- `rollout`, `attention_distance`: where the experts look, and how far (figures 4b, 5, S.2, S.3).
- `feature_rank`, `divergence`: what their tokens hold, and how they part (figures 4a, 4c, S.4).
- `teacher_entropy`: how sure the teacher is of strange images (figure 3).
- `curves`, `confusion`: learning curves (figure S.5) and mistakes.
- `images`, `study`, `labelled_views`: how these are fed from a run and its data.
- `tables`, `plots`, `pictures`, `page`: what `training.analyze` writes.
"""
