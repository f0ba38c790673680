# The rows of a channel that is coded: circuits under offsets that have a share of an image's patch, 16 in a tile; and the tables that they make.

# An image has so many rows at most, but for those whose shares are alike; the others have the least.
const MOST_ROWS = 256

# As many as images have, about; less than half of them beyond the first values.
const USUAL_ROWS = 64

"""
The rows of one circuit: of each its image and its offset, and the tiles with 16 rows each, of which there may be more than needed. `factor` and
`total` are of the last table: the power of two that brings a row to its image's scale, and the row's share.
"""
struct CodingRows{T}
    image::Vector{Int32}
    offset::Vector{Int32}           # from 1
    factor::Vector{Float64}
    total::Vector{Float64}
    heads::Vector{HeadWeights{T}}   # of each tile
    tiles::Vector{CodingTile{T}}
    groups::Vector{Matrix{T}}       # (rows, groups)
    values::Vector{Matrix{T}}       # (values of a group, rows)
end

CodingRows{T}() where {T} =
    CodingRows{T}(Int32[], Int32[], Float64[], Float64[], HeadWeights{T}[], CodingTile{T}[], Matrix{T}[], Matrix{T}[])

num_tiles(r::CodingRows) = cld(length(r.image), LANES)
rows_of_tile(r::CodingRows, t) = (t - 1) * LANES + 1:min(t * LANES, length(r.image))

"""
The rows of a channel: those circuits, and offsets, that have a share of the patch. Where the channel is anchored, the value of its first variable
is known, and used where it is `possible`.
"""
function begin_rows!(job::Coding, own::CodingChannel{T}, found::Vector{CodingRows{T}}, possible::Vector{Bool}) where {T}
    N, D, anchored = num_images(job), num_offsets(own), isanchored(own)
    first, least = anchored ? place(job) : 0, zeros(N)
    on_tiles(N) do n
        known = anchored && possible[n]
        share_rows!(job.patch[n], own, known ? Int(job.X[first, n]) : -1)
        least[n] = least_share(job.patch[n].shares, 1.0, job.coder.left_out.rows, MOST_ROWS)
    end
    number = zeros(Int, N)
    for (k, of) in enumerate(found)
        empty!(of.image)
        empty!(of.offset)
        for n in 1:N, d in 1:D
            job.patch[n].shares[d, k] >= least[n] && number[n] < 2MOST_ROWS || continue
            number[n] += 1
            push!(of.image, n)
            push!(of.offset, d)
        end
        resize!(of.factor, length(of.image))
        resize!(of.total, length(of.image))
        while length(of.tiles) < num_tiles(of)
            push!(of.tiles, CodingTile(own.plans[k]))
            push!(of.heads, HeadWeights{T}(length(own.joins[k])))
            push!(of.groups, zeros(T, LANES, num_groups(own)))
            push!(of.values, zeros(T, own.group, LANES))
        end
    end
    on_rows(found) do k, t
        of, plan = found[k], own.plans[k]
        fill!(of.heads[t].weight, 0)
        for (l, r) in enumerate(rows_of_tile(of, t))
            weigh_heads!(of.heads[t], l, job.patch[of.image[r]], own.joins[k], of.offset[r])
        end
        if anchored
            follow!(of.tiles[t], plan, plan.steps[1], of.heads[t])
            know!(of.tiles[t], plan, own.order[1], residuals(job, own, of, t, first, possible))
        end
    end
end

"`f(k, t)` of the tiles of all circuits of a channel."
function on_rows(f, found)
    tiles = [(k, t) for (k, of) in enumerate(found) for t in 1:num_tiles(of)]
    on_tiles(i -> f(tiles[i]...), length(tiles))
end

"What the rows of a tile have for their value of one row of `X`: less their offset; unknown where it is not possible, and of no row."
function residuals(job::Coding, own::CodingChannel, of::CodingRows, t, row, possible)
    found = fill(UNKNOWN, LANES)
    for (l, r) in enumerate(rows_of_tile(of, t))
        n = of.image[r]
        possible[n] && (found[l] = wrapped(job.X[row, n] - own.step * (of.offset[r] - 1), own.categories))
    end
    return found
end

"Makes the value that was coded last known to all rows."
function know_value!(job::Coding, own::CodingChannel{T}, found::Vector{CodingRows{T}}, possible) where {T}
    row, v = place(job), own.order[job.variable]
    on_rows(found) do k, t
        know!(found[k].tiles[t], own.plans[k], v, residuals(job, own, found[k], t, row, possible))
    end
end

"Of each row the power of two that brings it to its image's scale; `exponents(k, t)`: those of a tile's rows."
function scale_rows!(found::Vector{<:CodingRows}, exponents, N)
    top = fill(typemin(Int32) ÷ Int32(2), N)
    for (k, of) in enumerate(found), t in 1:num_tiles(of)
        e = exponents(k, t)
        for (l, r) in enumerate(rows_of_tile(of, t))
            top[of.image[r]] = max(top[of.image[r]], e[l])
        end
    end
    for (k, of) in enumerate(found), t in 1:num_tiles(of)
        e = exponents(k, t)
        for (l, r) in enumerate(rows_of_tile(of, t))
            of.factor[r] = double_power(e[l] - top[of.image[r]])
        end
    end
end

scale_tables!(found, own::CodingChannel, v, N) =
    scale_rows!(found, (k, t) -> view(found[k].tiles[t].above_exponent, :, own.plans[k].layout.single[v]), N)

"""
Leaves out the rows that have least of the last table, where fewer tiles hold the others: these move up.
"""
function drop_rows!(job::Coding, own::CodingChannel{T}, found::Vector{CodingRows{T}}) where {T}
    i, shares = job.variable, [Float64[] for _ in 1:num_images(job)]
    for of in found, r in eachindex(of.image)
        push!(shares[of.image[r]], of.total[r])
    end
    least = [least_share(own, sum_in_order(own), job.coder.left_out.rows, MOST_ROWS) for own in shares]
    on_tiles(length(found)) do k
        of, plan = found[k], own.plans[k]
        kept = [r for r in eachindex(of.image) if of.total[r] >= least[of.image[r]]]
        saved = num_tiles(of) - cld(length(kept), LANES)
        TILE_COST * saved * (length(own.order) - i) > length(kept) * i || return
        scopes = touched(plan, i)
        units = map(own -> reduce(vcat, [units_of(plan.layout.scopes[s]) for s in own]; init=Int32[]), scopes)
        for (to, r) in enumerate(kept)
            to == r && continue
            (a, from), (b, row) = fldmod1(r, LANES), fldmod1(to, LANES)
            copy_row!(of.tiles[b], row, of.tiles[a], from, scopes, units)
            of.heads[b].weight[row, :] = of.heads[a].weight[from, :]
            of.heads[b].exponent[row] = of.heads[a].exponent[from]
        end
        for rows in (of.image, of.offset, of.factor, of.total)
            rows[1:length(kept)] = rows[kept]
            resize!(rows, length(kept))
        end
    end
end

# A variable of a tile takes so many times as long as moving one variable of one row.
const TILE_COST = 8

# Tables.

"The weights of the groups of the next variable's values; how many there are."
function fill_groups!(job::Coding, own::CodingChannel{T}, found::Vector{CodingRows{T}}) where {T}
    v, G = own.order[job.variable], num_groups(own)
    job.variable == 1 && isanchored(own) && return anchor_groups!(job, own)
    on_rows(found) do k, t
        of, plan = found[k], own.plans[k]
        follow!(of.tiles[t], plan, plan.steps[job.variable], of.heads[t])
        G > 1 && group_weights!(of.groups[t], of.tiles[t], plan, v)
    end
    G > 1 || return 1
    fill!(job.table, 0.0)
    scale_tables!(found, own, v, num_images(job))
    scaled, total, factor = zeros(LANES, G), zeros(LANES), zeros(LANES)
    for of in found, t in 1:num_tiles(of)
        rows = rows_of_tile(of, t)
        copyto!(factor, 1, of.factor, first(rows), length(rows))
        scale_groups!(scaled, total, of.groups[t], factor)
        copyto!(of.total, first(rows), total, 1, length(rows))
        @inbounds for (l, r) in enumerate(rows)
            n, moved = of.image[r], moved_groups(own, of.offset[r])
            for g in 1:G - moved
                job.table[g + moved, n] += scaled[l, g]
            end
            for g in G - moved + 1:G
                job.table[g + moved - G, n] += scaled[l, g]
            end
        end
    end
    isanchored(own) && job.variable > 2 && ispow2(job.variable - 1) && drop_rows!(job, own, found)
    return G
end

"The weights of groups in each row, on its image's scale, and their sums."
function scale_groups!(scaled::Matrix{Float64}, total::Vector{Float64}, weights::Matrix{T}, factor::Vector{Float64}) where {T}
    GC.@preserve scaled total weights factor begin
        sum, scale = splat(0.0), load_lanes(pointer(factor))
        for g in axes(weights, 2)
            own = without_tiny(mul(lanes(Float64, load_lanes(lanes_at(pointer(weights), g))), scale))
            sum = add(sum, own)
            store_lanes(lanes_at(pointer(scaled), g), own)
        end
        store_lanes(pointer(total), sum)
    end
end

"The weights of the values in each image's group; how many there are."
function fill_values!(job::Coding, own::CodingChannel{T}, found::Vector{CodingRows{T}}) where {T}
    v, G = own.order[job.variable], num_groups(own)
    job.variable == 1 && isanchored(own) && return anchor_values!(job, own)
    fill!(job.table, 0.0)
    G > 1 || scale_tables!(found, own, v, num_images(job))
    on_rows(found) do k, t
        of, groups = found[k], ones(Int, LANES)
        for (l, r) in enumerate(rows_of_tile(of, t))
            groups[l] = wrapped(job.group[of.image[r]] - moved_groups(own, of.offset[r]), G) + 1
        end
        value_weights!(of.values[t], of.tiles[t], own.plans[k], v, groups)
    end
    for of in found, t in 1:num_tiles(of)
        weights = of.values[t]
        @inbounds for (l, r) in enumerate(rows_of_tile(of, t))
            n, factor = of.image[r], of.factor[r]
            for i in 1:own.group
                job.table[i, n] += without_tiny(weights[i, l] * factor)
            end
        end
    end
    return own.group
end

# Of the first variable of an anchored channel, whose rows are not chosen yet.

function anchor_groups!(job::Coding, own::CodingChannel)
    on_tiles(n -> anchor_groups!(job.table, n, own, job.patch[n]), num_images(job))
    return num_groups(own)
end

function anchor_groups!(table, n, own::CodingChannel, patch::CodingPatch)
    G, D, stride = num_groups(own), num_offsets(own), own.step ÷ own.group
    wide = zeros(2G)
    @inbounds for (i, j) in enumerate(patch.joins), g in own.window
        add_moved!(wide, g, stride, patch.weight, D, i, own.anchor_mass[g + 1, j])
    end
    for g in 1:G
        table[g, n] = wide[g] + wide[g + G]
    end
end

"Adds `factor` times the weights of all offsets of the i-th join to what `g`, from 0, is moved to by them."
@inline function add_moved!(wide, g, stride, weight, D, i, factor)
    if stride == 1
        @inbounds @simd ivdep for d in 1:D
            wide[g + d] += factor * weight[d, i]
        end
    else
        @inbounds for d in 1:D
            wide[g + 1 + stride * (d - 1)] += factor * weight[d, i]
        end
    end
end

function anchor_values!(job::Coding, own::CodingChannel)
    on_tiles(n -> anchor_values!(job.table, n, own, job.patch[n], job.group[n]), num_images(job))
    return own.group
end

function anchor_values!(table, n, own::CodingChannel, patch::CodingPatch, group)
    G = num_groups(own)
    table[:, n] .= 0.0
    before = [(d, wrapped(group - moved_groups(own, d), G)) for d in 1:num_offsets(own)]
    filter!(pair -> pair[2] in own.window, before)
    own.group == 8 && return anchor_eight!(pointer(table, 1 + size(table, 1) * (n - 1)), own, patch, before)
    for (i, j) in enumerate(patch.joins), (d, g) in before
        w = patch.weight[d, i]
        @inbounds for x in 1:own.group
            table[x, n] += w * own.anchor[x, g + 1, j]
        end
    end
end

function anchor_eight!(out::Ptr{Float64}, own::CodingChannel, patch::CodingPatch, before)
    sums, anchor, G = eight(0.0), own.anchor, num_groups(own)
    GC.@preserve anchor for (i, j) in enumerate(patch.joins)
        @inbounds for (d, g) in before
            sums = add(sums, mul(eight(patch.weight[d, i]), eight(Float64, pointer(anchor, 1 + 8 * (g + G * (j - 1))))))
        end
    end
    unsafe_store!(Ptr{NTuple{8,VecElement{Float64}}}(out), sums)
end

# What they say of the patch in the end.

"Multiplies what the channel's circuits say of the patch to what the others did."
function end_channel!(job::Coding, own::CodingChannel{T}, found::Vector{CodingRows{T}}) where {T}
    on_rows(found) do k, t
        follow!(found[k].tiles[t], own.plans[k], own.plans[k].last, found[k].heads[t])
    end
    scale_rows!(found, (k, t) -> view(found[k].tiles[t].value_exponent, :, own.plans[k].layout.root), num_images(job))
    foreach(patch -> fill!(patch.likelihood, 0.0), job.patch)
    for (k, of) in enumerate(found), t in 1:num_tiles(of), (l, r) in enumerate(rows_of_tile(of, t))
        say_row!(job.patch[of.image[r]], own.joins[k], of.offset[r], of.tiles[t].value, own.plans[k].circuit.heads, l, of.factor[r])
    end
    on_tiles(num_images(job)) do n
        prior = job.coder.prior
        prior isa CodingField ? say!(job.patch[n], num_offsets(own), job.fields[n], here(job), job.coder) : say!(job.patch[n], own, job.coder)
    end
end
