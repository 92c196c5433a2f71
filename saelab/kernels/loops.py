"""The inner loops of the compiled CPU kernels, as plain Python that numba compiles.

Nothing here imports numba: `saelab.kernels.compiled` compiles each function the first time it is
needed. Every loop writes to rows (of tokens or of latents) that no other call writes to, so the
result does not depend on how the rows are divided among threads.

The loops over `width` or over groups are the ones that become vector instructions; four matrix
rows are read at once because a single one would wait for memory.
"""

import numpy as np

__all__ = ["above", "by_column", "entries", "pair_products", "sum_pairs", "top_k"]


def sum_pairs(offsets, indices, values, order, matrix, out, accumulate, start, stop):  # noqa: D417
    """Rows start to stop of `out`: (+)= sum over the row's pairs of value * matrix[index].

    Args:
        order: Where each pair's value is; empty if the values are in the order of the pairs.
    """
    width = out.shape[1]
    ordered = len(order) > 0
    for row in range(start, stop):
        target = out[row]
        if not accumulate:
            target[:] = 0
        pair, end = offsets[row], offsets[row + 1]
        while pair + 4 <= end:
            if ordered:
                a, b = values[order[pair]], values[order[pair + 1]]
                c, d = values[order[pair + 2]], values[order[pair + 3]]
            else:
                a, b, c, d = values[pair], values[pair + 1], values[pair + 2], values[pair + 3]
            first, second = matrix[indices[pair]], matrix[indices[pair + 1]]
            third, fourth = matrix[indices[pair + 2]], matrix[indices[pair + 3]]
            for j in range(width):
                target[j] += (a * first[j] + b * second[j]) + (c * third[j] + d * fourth[j])
            pair += 4
        while pair < end:
            a = values[order[pair]] if ordered else values[pair]
            first = matrix[indices[pair]]
            for j in range(width):
                target[j] += a * first[j]
            pair += 1


def pair_products(offsets, indices, left, right, out, start, stop):
    """left[row] . right[index] for the pairs of rows start to stop."""
    width = left.shape[1]
    zero = left.dtype.type(0)
    for row in range(start, stop):
        fixed = left[row]
        pair, end = offsets[row], offsets[row + 1]
        while pair + 4 <= end:
            first, second = right[indices[pair]], right[indices[pair + 1]]
            third, fourth = right[indices[pair + 2]], right[indices[pair + 3]]
            a = b = c = d = zero
            for j in range(width):
                a += fixed[j] * first[j]
                b += fixed[j] * second[j]
                c += fixed[j] * third[j]
                d += fixed[j] * fourth[j]
            out[pair], out[pair + 1], out[pair + 2], out[pair + 3] = a, b, c, d
            pair += 4
        while pair < end:
            first = right[indices[pair]]
            a = zero
            for j in range(width):
                a += fixed[j] * first[j]
            out[pair] = a
            pair += 1


def by_column(offsets, indices, n_columns):
    """(offsets by column, order of the pairs by column, row of each): a stable counting sort."""
    starts = np.zeros(n_columns + 1, np.int64)
    for column in indices:
        starts[column + 1] += 1
    for column in range(n_columns):
        starts[column + 1] += starts[column]
    free = starts[:-1].copy()
    order = np.empty(len(indices), np.int64)
    rows = np.empty(len(indices), np.int64)
    for row in range(len(offsets) - 1):
        for pair in range(offsets[row], offsets[row + 1]):
            place = free[indices[pair]]
            free[indices[pair]] += 1
            order[place] = pair
            rows[place] = row
    return starts, order, rows


def top_k(values, k, n_groups, kept, columns, start, stop):  # noqa: D417
    """The k largest of rows start to stop, into `kept` and `columns`.

    With t the k-th largest of the maxima of strided groups, at least k entries are >= t, and all of
    them are in groups whose maximum is >= t. Both borders, t (roughly, from the row before) and the
    k-th largest of what is left (exactly), are found by bisection over the integers that order
    floats. Among equals the first in group order are kept, whatever t was. NaN counts as less than
    everything.

    Args:
        n_groups: Entry j is in group j mod n_groups; at least k.
    """
    width = values.shape[1]
    maxima = np.empty(n_groups, np.float32)
    found = np.empty(width + 1, np.float32)
    places = np.empty(width + 1, np.int64)
    border = np.zeros(1, np.float32)
    bits = border.view(np.int32)
    one, zero = np.float32(1), np.float32(0)
    bottom, top = np.int64(-2139095041), np.int64(2139095041)  # keys of -inf, and above +inf
    slack = k + k // 4 + 1
    guess = np.int64(0)
    for row in range(start, stop):
        x = values[row]
        for g in range(n_groups):
            maxima[g] = -np.inf
        base = 0
        while base + 4 * n_groups <= width:
            a, b = x[base : base + n_groups], x[base + n_groups : base + 2 * n_groups]
            base += 2 * n_groups
            c, d = x[base : base + n_groups], x[base + n_groups : base + 2 * n_groups]
            base += 2 * n_groups
            for g in range(n_groups):
                m = maxima[g]  # never NaN, so neither is what wins against it
                m = a[g] if a[g] > m else m
                m = b[g] if b[g] > m else m
                m = c[g] if c[g] > m else m
                maxima[g] = d[g] if d[g] > m else m
        while base < width:
            a = x[base : min(base + n_groups, width)]
            for g in range(len(a)):
                maxima[g] = a[g] if a[g] > maxima[g] else maxima[g]
            base += n_groups
        # count(>= least) >= k > count(>= most), if anything is there at all
        least, most, reach, middle = bottom, top, np.int64(1 << 18), guess
        while True:
            key = np.int32(middle)
            bits[0] = key ^ ((key >> 31) & np.int32(0x7FFFFFFF))
            limit = border[0]
            count = zero
            for g in range(n_groups):
                count += one if maxima[g] >= limit else zero
            if count >= k:
                least = middle
                if count <= slack:
                    break
                middle += reach
            else:
                most = middle
                middle -= reach
            if most - least <= 1:
                break
            reach *= 4
            if middle <= least or middle >= most:
                middle = (least + most) >> 1
        guess = least
        key = np.int32(least)
        bits[0] = key ^ ((key >> 31) & np.int32(0x7FFFFFFF))
        limit = border[0]

        n_found = 0
        for g in range(n_groups):
            if maxima[g] >= limit:
                for j in range(g, width, n_groups):
                    found[n_found] = x[j]
                    places[n_found] = j
                    n_found += x[j] >= limit
        if n_found < k:  # possible only if everything that is not NaN was found
            for j in range(width):
                if n_found < k and x[j] != x[j]:
                    found[n_found] = x[j]
                    places[n_found] = j
                    n_found += 1
        if n_found > k:
            most, middle, reach = top, least + (1 << 18), np.int64(1 << 18)
            while most - least > 1:
                key = np.int32(middle)
                bits[0] = key ^ ((key >> 31) & np.int32(0x7FFFFFFF))
                limit = border[0]
                count = zero
                for i in range(n_found):
                    count += one if found[i] >= limit else zero
                if count >= k:
                    least = middle
                    if count == k:
                        break
                    middle += reach
                    reach *= 2
                else:
                    most = middle
                    middle = top
                if middle >= most:
                    middle = (least + most) >> 1
            # All above `limit` stay, and of those equal to it the first ones.
            key = np.int32(least)
            bits[0] = key ^ ((key >> 31) & np.int32(0x7FFFFFFF))
            limit = border[0]
            equals = k
            for i in range(n_found):
                equals -= found[i] > limit
            n_kept = 0
            for i in range(n_found):
                if found[i] > limit or (found[i] == limit and equals > 0):
                    if found[i] == limit:
                        equals -= 1
                    found[n_kept] = found[i]
                    places[n_kept] = places[i]
                    n_kept += 1
        for i in range(k):
            kept[row, i] = found[i]
            columns[row, i] = places[i]


def above(values, thresholds, signed, start, stop):  # noqa: D417
    """(row, column, value) of every entry of rows start to stop that exceeds its threshold.

    Args:
        thresholds: One a column, or a single one for all.
        signed: Compare by size instead of by value.
    """
    width = values.shape[1]
    single = len(thresholds) == 1
    capacity = 64 * (stop - start) + width
    rows = np.empty(capacity, np.int64)
    columns = np.empty(capacity, np.int64)
    kept = np.empty(capacity, values.dtype)
    n = 0
    for row in range(start, stop):
        if n + width > capacity:
            capacity = 2 * capacity + width
            more_rows = np.empty(capacity, np.int64)
            more_columns = np.empty(capacity, np.int64)
            more_kept = np.empty(capacity, values.dtype)
            more_rows[:n], more_columns[:n], more_kept[:n] = rows[:n], columns[:n], kept[:n]
            rows, columns, kept = more_rows, more_columns, more_kept
        for base in range(0, width, 64):
            x = values[row, base : min(base + 64, width)]
            t = thresholds[0:1] if single else thresholds[base : min(base + 64, width)]
            count = np.int32(0)
            if single:
                limit = thresholds[0]
                for j in range(len(x)):
                    count += np.int32((abs(x[j]) if signed else x[j]) > limit)
            else:
                for j in range(len(x)):
                    count += np.int32((abs(x[j]) if signed else x[j]) > t[j])
            if count == 0:
                continue
            for j in range(len(x)):
                limit = t[0] if single else t[j]
                if (abs(x[j]) if signed else x[j]) > limit:
                    rows[n], columns[n], kept[n] = row, base + j, x[j]
                    n += 1
    return rows[:n], columns[:n], kept[:n]


def entries(values, mask, start, stop):
    """(row, column, value) of every entry of rows start to stop whose mask is not 0."""
    width = values.shape[1]
    n = 0
    for row in range(start, stop):
        count = np.int32(0)
        for j in range(width):
            count += np.int32(mask[row, j])
        n += count
    rows, columns = np.empty(n, np.int64), np.empty(n, np.int64)
    kept = np.empty(n, values.dtype)
    n = 0
    for row in range(start, stop):
        for base in range(0, width, 64):
            here = mask[row, base : min(base + 64, width)]
            some = np.uint8(0)
            for j in range(len(here)):
                some |= here[j]
            if some == 0:
                continue
            for j in range(len(here)):
                if here[j]:
                    rows[n], columns[n], kept[n] = row, base + j, values[row, base + j]
                    n += 1
    return rows, columns, kept
