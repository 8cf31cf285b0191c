"use strict";
document.querySelectorAll(".scatter").forEach(prepareMarks);
