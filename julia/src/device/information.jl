# Counts of pairs on a device: the tables of all pairs of two blocks of variables at once, in passes over the samples.

"Up to so many categories, tables are matrix products of one-hot values: 2 C^2 operations a pair and sample, which then cost less than an access to memory."
const MOST_ONE_HOT = 32

# Rows of the matrix of a block's tables, as a product and counted, variables of a block that is counted, and samples of a pass: enough to keep a
# device busy, so little that a CPU is done with a pass in some tenths of a second, after which Python may want to be back.
const ONE_HOT_SIDE, COUNTED_SIDE, COUNTED_VARIABLES, COUNTED_SAMPLES = 2^11, 2^13, 2^6, 2^10

"""
Tables of all pairs of a block of own variables, from the job's `next` on, and a block from `other` on. That of variables k and l of the two has
its cell of categories (a, b) at `counts[a * block + k, b * block + l]`, so that neighbouring threads have neighbouring variables. The room is made
when it is first needed.
"""
mutable struct DeviceCounter{A} <: PairCounter
    device::Device{A}
    block::Int                      # variables of a block
    rows::Int                       # samples of a pass
    other::Int                      # first variable of the second block; 0 before the first pass over the first one
    done::Int                       # samples that are counted in `counts`
    counts::AbstractMatrix{UInt32}  # (block * categories, block * categories)
    part::AbstractMatrix{Float32}   # what one pass adds, and the blocks' one-hot values, (block * categories, rows); none where pairs are counted one by one
    hot::NTuple{2,AbstractMatrix{Float32}}
    sums::AbstractMatrix{Int64}     # (pairs of the blocks, those of `pair_sums!`)
    terms::NTuple{2,AbstractVector{Int64}}  # of the cells of a pair, and of a variable
end

"What a device counts in is its own memory, and gets smaller where that has no room."
counter_bytes(::Device, N::Int, categories::Int, incomplete::Bool) = 0.0

function pair_counter(device::Device{A}, N::Int, V::Int, categories::Int, incomplete::Bool) where {A}
    block = categories <= MOST_ONE_HOT ? ONE_HOT_SIDE ÷ categories : min(COUNTED_SIDE ÷ categories, COUNTED_VARIABLES)
    return DeviceCounter{A}(device, clamp(block, 1, max(V, 1)), min(N, COUNTED_SAMPLES), 0, 0, no_room(device.array)...)
end

"`counts`, `part`, `hot`, `sums` and `terms` without a number."
function no_room(place)
    none(T, dimensions) = place(zeros(T, ntuple(_ -> 0, dimensions)))
    return none(UInt32, 2), none(Float32, 2), (none(Float32, 2), none(Float32, 2)), none(Int64, 2), (none(Int64, 1), none(Int64, 1))
end

function make_room!(p::DeviceCounter, job::MutualInformationJob)
    isempty(p.counts) || return
    place, side = p.device.array, p.block * job.categories
    p.counts, p.sums = place(zeros(UInt32, side, side)), place(zeros(Int64, p.block^2, 7))
    p.terms = (place(job.joint.fixed), place(job.marginal.fixed))
    if job.categories <= MOST_ONE_HOT
        p.part, p.hot = place(zeros(Float32, side, side)), ntuple(_ -> place(zeros(Float32, side, p.rows)), 2)
    end
    return nothing
end

drop_room!(p::DeviceCounter) = ((p.counts, p.part, p.hot, p.sums, p.terms) = no_room(p.device.array); nothing)

"One pass over samples. Where the device's memory has no room for it, the two blocks are begun anew with fewer variables, or samples of a pass."
function count_pairs!(p::DeviceCounter, job::MutualInformationJob)
    try
        count_pass!(p, job)
    catch error
        drop_room!(p)
        is_full(error) && p.block * p.rows > 1 || rethrow()
        p.block > 1 ? (p.block ÷= 2) : (p.rows ÷= 2)
        p.done = 0
    end
    pause()
end

function count_pass!(p::DeviceCounter, job::MutualInformationJob)
    N, V = size(job.columns)
    own = first_own(job, p.block)
    p.other == 0 && !isempty(own) && (p.other = first(own) + 1)
    others = p.other:min(p.other + p.block - 1, V)
    if !isempty(own) && !isempty(others)
        make_room!(p, job)
        p.done == 0 && fill!(p.counts, 0)
        range = p.done + 1:min(p.done + p.rows, N)
        count_blocks!(p, job.categories, load_block(p, job, own, range), load_block(p, job, others, range))
        p.done = last(range)
        p.done < N && return
        note_pairs!(p, job, own, others)
        p.done, p.other = 0, last(others) + 1
        p.other <= V && return
    end
    p.other, job.next = 0, isempty(own) ? V + 1 : last(own) + 1
    job.next > V && drop_room!(p)
    return nothing
end

"The next variables whose pairs with later ones are done here."
first_own(job::MutualInformationJob, count::Int) =
    collect(Int, Iterators.take(Iterators.filter(i -> is_own(job, i), job.next:size(job.columns, 2)), count))

"The values of a block's variables in a pass, `(block, rows)`: missing in what is beyond either."
function load_block(p::DeviceCounter, job::MutualInformationJob, variables, range)
    x = fill(MISSING_VALUE, p.block, p.rows)
    for (k, i) in enumerate(variables), (row, n) in enumerate(range)
        @inbounds x[k, row] = job.columns[n, i]
    end
    return p.device.array(x)
end

"Adds a pass to the tables. A product of one pass is exact in single precision: no count is above 2^24."
function count_blocks!(p::DeviceCounter, categories::Int, x, y)
    if categories <= MOST_ONE_HOT
        for (hot, values) in zip(p.hot, (x, y))
            launch!(one_hot!, hot, length(hot), hot, values, p.block, categories)
        end
        matrix_product!(p.part, p.hot[1], p.hot[2], 0f0, false, true)
        launch!(add_counts!, p.counts, length(p.counts), p.counts, p.part)
    else
        launch!(count_samples!, p.counts, p.block^2, p.counts, x, y, p.block, p.rows)
    end
end

"Notes the mutual information of all pairs of the two blocks, from their tables."
function note_pairs!(p::DeviceCounter, job::MutualInformationJob, own, others)
    incomplete = isempty(job.entropy)
    launch!(pair_sums!, p.counts, p.block^2, p.sums, p.counts, p.terms..., p.block, job.categories, incomplete)
    sums = Array(p.sums)::Matrix{Int64}
    for (k, i) in enumerate(own), (l, j) in enumerate(others)
        i < j || continue
        of_pair(column) = sums[(l - 1) * p.block + k, column]
        joint = (of_pair(1), of_pair(2))
        incomplete ? note_pair!(job, i, j, joint, (of_pair(3), of_pair(4)), (of_pair(5), of_pair(6)), of_pair(7)) : note_pair!(job, i, j, joint)
    end
end

# ------------------------------------------------------------------------------------------------------------------- kernels

"hot[a * block + k, n] = 1 where variable k of sample n is a, else 0: also where it is missing."
function one_hot!(i, hot, x, block, categories)
    cell, n = at(i, block * categories)
    k, a = at(cell, block)
    @inbounds hot[cell, n] = x[k, n] == a - 1 ? 1f0 : 0f0
    return nothing
end

"counts[i] += part[i]"
function add_counts!(i, counts, part)
    @inbounds counts[i] += unsafe_trunc(UInt32, part[i])
    return nothing
end

"Adds all samples to one pair's table, sample by sample."
function count_samples!(i, counts, x, y, block, rows)
    k, l = at(i, block)
    @inbounds for n in 1:rows
        a, b = x[k, n], y[l, n]
        (a == MISSING_VALUE) | (b == MISSING_VALUE) || (counts[a * block + k, b * block + l] += UInt32(1))
    end
    return nothing
end

"""
Of one pair: how many cells hold samples, and the sum of their terms; where values are missing, the same for each of its variables, and how many
samples have both.
"""
function pair_sums!(i, sums, counts, joint, marginal, block, categories, incomplete)
    k, l = at(i, block)
    occupied, total, occupied_k, total_k, occupied_l, total_l, seen = 0, 0, 0, 0, 0, 0, 0
    @inbounds for b in 0:categories - 1
        in_column = 0
        for a in 0:categories - 1
            count = Int(counts[a * block + k, b * block + l])
            in_column += count
            count > 0 && (occupied += 1; total += joint[count + 1])
        end
        seen += in_column
        incomplete && in_column > 0 && (occupied_l += 1; total_l += marginal[in_column + 1])
    end
    @inbounds for a in 0:(incomplete ? categories : 0) - 1
        in_row = 0
        for b in 0:categories - 1
            in_row += Int(counts[a * block + k, b * block + l])
        end
        in_row > 0 && (occupied_k += 1; total_k += marginal[in_row + 1])
    end
    @inbounds sums[i, 1], sums[i, 2], sums[i, 3], sums[i, 4] = occupied, total, occupied_k, total_k
    @inbounds sums[i, 5], sums[i, 6], sums[i, 7] = occupied_l, total_l, seen
    return nothing
end
