"""What each verb takes, as `--help` tells it.

Apart from the verbs, whose imports would slow `--help` down; a test compares the lists with those of
`posefoundry.api.arguments`.
"""

COMMON_KEYS = "device, project, name, exist_ok, verbose"
TRAIN_KEYS = (
    "data, epochs, batch, imgsz, pretrained, workers, processes, seed, optimizer, lr0, lrf, cos_lr, momentum, "
    "weight_decay, warmup_epochs, amp, compile, cache, box, cls, dfl, pose, kobj, l1, rle, class_weights, "
    "keypoint_weights, hsv_h, hsv_s, hsv_v, degrees, translate, scale, shear, perspective, fliplr, flipud, blur, "
    "cutout, mosaic, mixup, copy_paste, multi_scale, close_mosaic, ema_decay, ema_ramp_updates, gradient_clip_norm, "
    "validate_every_epochs, patience, freeze, freeze_batchnorm, sync_batchnorm, resume, " + COMMON_KEYS
)
VAL_KEYS = (
    "data, split, imgsz, batch, conf, iou, max_det, half, end2end, tags, "
    "pck_thresholds, pck_reference, pckh_threshold, save_json, " + COMMON_KEYS
)
PREDICT_KEYS = (
    "source, model, imgsz, conf, iou, max_det, batch, half, end2end, classes, vid_stride, save, save_txt, save_conf, "
    "save_crop, show, " + COMMON_KEYS
)
EXPORT_KEYS = "format, imgsz, half, end2end, batch, opset, dynamic, simplify, " + COMMON_KEYS

EVALUATE_KEYS = "\n".join(
    (
        "annotations  a COCO keypoint file",
        "      detections   a COCO results file: a list of objects with image_id,",
        "                   category_id, keypoints, score and, for box AP, bbox",
        "      json         write the figures there: oks_ap, oks_ap50, oks_ar_m, ...,",
        "                   box_ap, ..., pck_0.1, mean_error_px, ..., null where there",
        "                   is nobody to measure them on; with them errors, slices,",
        "                   warnings, and in passport the rules and the files' hashes",
        "      sigmas       coco, flat (1/K), a file with a list under sigmas, or a",
        "                   list; by default those in the annotation file, else",
        "                   COCO's where the keypoints are COCO's 17",
        "      area         whose area scales OKS: annotation (COCO's rule, the",
        "                   default; a person without area is refused), box (0.53 x",
        "                   the box), annotation_else_box",
        "      slices       true: AP by size, keypoint, visibility, truncation,",
        "                   persons in the image, class, tag; or crossed ones as",
        "                   well: slices='keypoint&size'",
        "      tags         a CSV with a column file_name and a column a tag",
        "      seen         the score from which a detection counts for PCK, pixels and",
        "                   the kinds of error, whatever scale scores have; 0.25. For",
        "                   AP and AR all count",
        "      pck_thresholds, pck_reference, pckh_threshold",
        "                   how far off, in parts of a person's size, a keypoint may be",
        "                   for PCK, [0.05, 0.1, 0.2]; that size: box (its longer side)",
        "                   or torso; and in parts of the head, for PCKh, 0.5",
    )
)

SIGMAS_KEYS = "\n".join(
    (
        "annotations  a COCO keypoint file, as one person annotated it",
        "      second       the same images, as another person annotated them; a few",
        "                   hundred persons are needed, ten of each keypoint at least",
        "      out          write them there, .yaml or .json: sigmas and kpt_names",
        "                   as in a dataset.yaml, and what they were measured on",
        "      seed         of the resamples behind the 95 % intervals; 0",
    )
)

HARD_EXAMPLES_KEYS = "\n".join(
    (
        "count        how many images at most; 50",
        "      out          a new folder for pictures, pre-labels and reasons;",
        "                   hard_examples",
        "      annotations  a COCO keypoint file; by default the pipeline's test split.",
        "                   An image without annotations is judged by confidence and",
        "                   disagreement alone",
        "      images       the folder of its pictures; needed with annotations",
        "      detections   a COCO results file of these images; needed as well",
        "      production   another one, of the model in production, to compare with;",
        "                   by default what the gate left",
    )
)
